"""What another Python module of one's own holds."""

n = 0
m = 0
seen: list[int] = []


def bump() -> int:
    global m
    m += 1
    return m
