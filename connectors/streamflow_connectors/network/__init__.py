"""What connectors to servers share: addresses, certificates, retries, a backlog."""
