"""The processes of an MPI job as workers."""
