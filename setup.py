"""pip install -e .   (torch first: see README, "Manual installation")"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def requirements(name: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (HERE / name).read_text().splitlines())
    return [line for line in lines if line]


setup(
    name="mopd",
    version="0.1.0",
    description="Multi-Rollout On-Policy Distillation: a language model learns from its own group of attempts",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["trainer*", "data*", "experiments*", "benchmarks*", "analysis*", "diversity*"]),
    package_data={"trainer.config": ["*.yaml", "*/*.yaml"], "analysis": ["*.html"]},
    install_requires=requirements("requirements.txt"),
    extras_require={"test": requirements("requirements_test.txt"), "vllm": requirements("requirements_vllm.txt")},
)
