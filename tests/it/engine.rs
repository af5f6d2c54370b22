//! The service on the host device.
