//! Who asks, and with which key the upstream is asked.
