"""The version of the product, read without the standard library's machinery."""

from importlib.metadata import PackageNotFoundError, version

from runtime.version import product_version


def test_version_is_the_installed_one() -> None:
    try:
        installed = version("amp-workflow-orchestration")
    except PackageNotFoundError:
        installed = "dev"
    assert product_version() == installed
