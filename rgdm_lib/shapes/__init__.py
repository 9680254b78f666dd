"""3-D shapes as point clouds: data, metrics, rewards."""
