//! Saved state: tagged blobs with stable names, encoded apart from the runtime types.
