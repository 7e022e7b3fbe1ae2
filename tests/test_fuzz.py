"""A short run of the fuzzer of files, `fuzz_files.py`."""

import fuzz_files


def test_no_damaged_file_is_taken_for_another_content_or_breaks_more_than_its_reading() -> None:
    results = fuzz_files.run(400, seed=1)
    assert [failure for result in results.values() for failure in result.failures] == []
    assert all(result.outcomes["refused"] + result.outcomes["same"] for result in results.values())


def test_a_mutation_is_the_same_again() -> None:
    first, again = (fuzz_files.run(400, seed=2, only="rows.csv:7")["rows.csv"].outcomes for _ in range(2))
    assert first == again
    assert first.total() == 1
