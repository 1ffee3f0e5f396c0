//! Parses the replies of scripts.

use deadpool_redis::redis::{FromRedisValue, Value};

use super::Error;
use super::leases::{Lease, LeaseId};
use super::record::{self, Record};
use super::redact::unexpected;

/// The bit in the state of a lease that means it was taken over; see head/leases.lua.
const TAKEN_OVER: u8 = 2;

/// The reply of a script, read from left to right.
pub(super) struct Reply(std::vec::IntoIter<Value>);

impl Reply {
    pub(super) fn new(values: Vec<Value>) -> Self {
        Self(values.into_iter())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    pub(super) fn next<T: FromRedisValue>(&mut self) -> Result<T, Error> {
        let value = self.0.next().ok_or_else(|| unexpected("too few values"))?;
        Ok(T::from_redis_value(value)?)
    }

    /// The next value, parsed as the end of a rest: 0 if there is none.
    pub(super) fn rest(&mut self) -> Result<Option<i64>, Error> {
        Ok(Some(self.next()?).filter(|ends| *ends > 0))
    }

    /// The next value, parsed as a lease in the format of head/leases.lua.
    pub(super) fn lease(&mut self, id: LeaseId) -> Result<Lease, Error> {
        let packed: Vec<u8> = self.next()?;
        let cut = || unexpected("a truncated lease");
        let (left, rest) = packed.split_first_chunk().ok_or_else(cut)?;
        let (now, rest) = rest.split_first_chunk().ok_or_else(cut)?;
        let ([state, flags], rest) = rest.split_first_chunk().ok_or_else(cut)?;
        let (expiry, tail) = rest.split_first_chunk().ok_or_else(cut)?;
        let Record { credential, suspect, .. } = record::read(*flags, u32::from_be_bytes(*expiry), tail)?;
        Ok(Lease {
            id,
            credential: credential.id,
            kind: credential.kind,
            expiry: credential.expiry,
            now: i64::from(u32::from_be_bytes(*now)),
            suspect,
            taken_over: state & TAKEN_OVER != 0,
            messages_left: u32::from_be_bytes(*left),
        })
    }
}
