//! Byte-exact views of IP packets and TCP segments, and the edits the engine makes to them.
