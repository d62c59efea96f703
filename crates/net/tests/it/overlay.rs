//! Overlays between network namespaces.
