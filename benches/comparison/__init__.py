"""The comparison: what stands beside the gateway, what is measured, and how it is shown."""
