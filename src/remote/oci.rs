//! An image of a pack, as registries and Kubernetes' image volumes take it.
