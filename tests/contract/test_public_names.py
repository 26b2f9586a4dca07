import subprocess
import sys

import znatok


def test_every_public_name_resolves():
    for name in znatok.__all__:
        assert getattr(znatok, name) is not None


def test_the_public_interface_is_frozen():
    assert sorted(znatok.__all__) == [
        "ChatFormat",
        "Expert",
        "Run",
        "SampleOptions",
        "TrainConfig",
        "ZnatokError",
        "__version__",
        "compare",
        "open_expert",
        "plan",
        "read_pairs",
        "train",
    ]


def test_importing_the_package_imports_no_torch():
    code = "import sys, znatok; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(znatok, "no_such_name")
