"""Which way samples go: eagerly, compiled, or many in one forward."""
