"""The devices: interrupt controllers, UART, clock, virtio."""
