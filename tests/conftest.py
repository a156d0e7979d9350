"""What pytest leaves alone."""

collect_ignore = ["stranger"]  # a package of its own, whose tests run where it is installed
