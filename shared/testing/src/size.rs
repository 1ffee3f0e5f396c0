//! How large tests are. Most runs take a size that is just enough to prove what the test is about; `./deploy/test.sh --soak`
//! takes the large one, to find what happens once in ten thousand times.

/// Whether the large sizes are wanted: FORMID_TEST_SOAK is set.
pub fn soak() -> bool {
    std::env::var_os("FORMID_TEST_SOAK").is_some_and(|value| !value.is_empty())
}

/// The usual size, or the large one where that is wanted.
pub fn sized<T>(usual: T, large: T) -> T {
    if soak() { large } else { usual }
}
