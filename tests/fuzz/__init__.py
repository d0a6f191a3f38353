"""What comes from outside, damaged in every way: it reads right, or is refused in one line that names the file.

`python -m pytest tests/fuzz` takes seconds, with the same inputs each time. `FUZZ=20000 python -m pytest tests/fuzz`
tries so many of each kind (fewer of the slow), other ones each time; of sounds, others still with another `FUZZ_SEED`.
"""
