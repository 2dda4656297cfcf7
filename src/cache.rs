//! Terminal clips, and live states for a moment, by key domain.
