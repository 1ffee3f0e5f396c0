//! The meaning of the codes of the token endpoints. This table is separate from [`crate::wechat::errcode`], because a
//! code can have another meaning here: 40001 is a wrong secret, not an invalid token.

/// Whether waiting helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// It may: try again after a pause.
    Transient,
    /// It does not: an operator has to change something.
    Final,
    /// The code is not in the table: try again after a pause, and log an error.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub errcode: i32,
    pub weight: Weight,
    /// The problem and, if an operator can fix it, the fix.
    pub sentence: &'static str,
}

const fn row(errcode: i32, weight: Weight, sentence: &'static str) -> Row {
    Row { errcode, weight, sentence }
}

const NOT_ON_IP_LIST: &str =
    "the dispatcher's IP address, as WeChat sees it, is not on the app's IP list: add it in the WeChat console";

/// All known codes, in ascending order.
pub const TABLE: &[Row] = &[
    row(-1, Weight::Transient, "WeChat is busy"),
    row(
        40001,
        Weight::Final,
        "the secret is wrong: compare it with the app's in the WeChat console, where it may have been reset",
    ),
    row(
        40002,
        Weight::Final,
        "the grant type is refused: check that base_url leads to WeChat or to a gateway with the same API",
    ),
    row(40013, Weight::Final, "the app id is wrong: correct it in the apps file"),
    row(40125, Weight::Final, "the secret is not valid: copy it again from the WeChat console"),
    row(40164, Weight::Final, NOT_ON_IP_LIST),
    row(
        40243,
        Weight::Final,
        "the secret is frozen: an administrator of the app must unfreeze it in the WeChat console",
    ),
    row(45009, Weight::Transient, "the daily number of token calls is used up"),
    row(45011, Weight::Transient, "too many token calls in a short time"),
    row(50004, Weight::Final, "the app may not fetch tokens: check the state of the account in the WeChat console"),
    row(61004, Weight::Final, NOT_ON_IP_LIST),
    row(89503, Weight::Final, "this address is waiting for approval by an administrator of the app in WeChat"),
];

/// Returns the row of a code. A code that is not in the table is [`Weight::Unknown`].
pub fn row_of(errcode: i32) -> Row {
    match TABLE.binary_search_by_key(&errcode, |row| row.errcode) {
        Ok(found) => TABLE[found],
        Err(_) => row(errcode, Weight::Unknown, "unknown errcode"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_and_every_row_is_found() {
        assert!(TABLE.is_sorted_by(|a, b| a.errcode < b.errcode));
        for row in TABLE {
            let found = row_of(row.errcode);
            assert_eq!((found.errcode, found.weight), (row.errcode, row.weight));
        }
    }

    #[test]
    fn unknown_errcode_is_tried_again() {
        assert_eq!(row_of(99999).weight, Weight::Unknown);
    }
}
