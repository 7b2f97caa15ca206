"""What runs on the guest CPUs at a panic, and the stores that go astray."""
