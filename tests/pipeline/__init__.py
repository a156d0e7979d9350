"""Tests of the pipeline of stages."""
