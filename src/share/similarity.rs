//! How alike two files are that may not be read: the rule that the registry's search and the node's verdict share.

/// Times that differ by no more than these seconds count as equal: file systems round them.
pub const SAME_MODIFIED_S: f64 = 2.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Similarity {
    /// Same size and modification times within two seconds.
    Exact,
    SameSize,
}

/// Compares by size and modification time (Unix seconds). An unknown time equals no other.
pub fn similarity(size: u64, modified: Option<f64>, other_size: u64, other_modified: f64) -> Option<Similarity> {
    if size != other_size {
        return None;
    }
    let is_near = modified.is_some_and(|modified| (modified - other_modified).abs() <= SAME_MODIFIED_S);
    Some(if is_near { Similarity::Exact } else { Similarity::SameSize })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likeness_is_by_size_and_then_by_time() {
        assert_eq!(similarity(5, Some(100.0), 5, 102.0), Some(Similarity::Exact));
        assert_eq!(similarity(5, Some(100.0), 5, 102.1), Some(Similarity::SameSize));
        assert_eq!(similarity(5, None, 5, 100.0), Some(Similarity::SameSize));
        assert_eq!(similarity(5, Some(100.0), 6, 100.0), None);
    }
}
