//! The sizes of tests. Most runs use a size that is just enough to test the property in question. `./deploy/test.sh
//! --soak` uses the large size, to find failures that happen once in ten thousand times.

/// Whether the large sizes are selected, by a non-empty FORMID_TEST_SOAK.
pub fn soak() -> bool {
    std::env::var_os("FORMID_TEST_SOAK").is_some_and(|value| !value.is_empty())
}

/// The usual size, or the large one if the large sizes are selected.
pub fn sized<T>(usual: T, large: T) -> T {
    if soak() { large } else { usual }
}
