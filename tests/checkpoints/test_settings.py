import pytest

from midblock.base import MidblockError
from midblock.checkpoints import LoadSettings


def test_defaults_and_options():
    assert LoadSettings.of({}) == LoadSettings()
    assert LoadSettings.of({"dtype": "bfloat16", "device": "cpu"}).dtype == "bfloat16"
    assert not LoadSettings().trust_remote_code
    assert not LoadSettings().allow_pickle


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "flaot32"}, "unknown dtype 'flaot32' .*did you mean 'float32'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"dtipe": "float32"}, "unknown option 'dtipe' .*did you mean 'dtype'"),
        ({"device": "cpu", "device_map": "auto"}, "device and device_map exclude each other"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(MidblockError, match=message):
        LoadSettings.of(options)
