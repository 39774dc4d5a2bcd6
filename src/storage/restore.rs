pub(super) const STAGING_DIR: &str = ".restoring";
