"""The command line."""

from streamflow.cli.app import main as main
