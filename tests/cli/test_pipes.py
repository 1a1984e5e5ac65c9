import os
import signal

import pytest

from flrl.cli.pipes import while_read


def test_what_is_printed_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with while_read():
        print("a line")
    assert capsys.readouterr().out == "a line\n"


def test_a_reader_that_stops_ends_the_process_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as end, while_read():
            print("a line")
    assert end.value.code == 128 + signal.SIGPIPE
