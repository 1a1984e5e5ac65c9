"""What needs a GPU to be seen; `FLRL_GPU_TESTS_DEVICE=cpu` tries the tests themselves without one."""
