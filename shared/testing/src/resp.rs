//! The part of the Redis protocol that is needed to find where a reply or a command ends.

/// Length of the first value in bytes; `None` if it is not complete.
pub fn length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|end| end == b"\r\n")? + 2;
    let number = || std::str::from_utf8(&bytes[1..line - 2]).unwrap().parse::<i64>().unwrap();
    let end = match bytes[0] {
        b'$' if number() >= 0 => line + number() as usize + 2,
        b'*' => (0..number()).try_fold(line, |at, _| Some(at + length(bytes.get(at..)?)?))?,
        _ => line,
    };
    (end <= bytes.len()).then_some(end)
}
