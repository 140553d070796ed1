//! keymgr
