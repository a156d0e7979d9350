"""From a network of the caller to modules for the stages: traced, cut, and watched for changes."""
