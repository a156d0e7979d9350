"""The async wing: moves batches from sources to sinks and knows when each is finished."""
