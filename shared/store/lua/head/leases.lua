-- Leases: messages in flight.
--
-- A lease holds one use of one credential for one message. The record of the credential stays in the user's field
-- without that use, so a form id in flight is still recognized as a duplicate.
--
-- A message with a request id has its lease under that id, so that a repetition of the request finds it. Any other
-- message has it under the lease id. The owner is also a lease id, and fences: an owner that lost the lease changes
-- nothing. A lease has two times: its deadline, until which its owner has it exclusively, and its turn, when the reaper
-- next processes it.
--
-- Packed:  1-8 deadline and 9-16 turn in ms  17 state  18 flags of the record  19-22 expiry of the record
--          from 23: who (made by leases.rs): 23-38 owner, 39-54 fingerprint of the message (zeros without request id),
--          then openid and request id, each with a length byte before it; last the tail of the record
-- State is a sum: 1 the lease is held for its request, after its deadline or because the outcome is unknown;
-- 2 it was taken over, so bytes may have been sent before;
-- 4 its user was erased, and it only records that the message was in flight (counted in the ledger as "lost").
--- @include head/records

local now_ms = now * 1000 + math.floor(tonumber(clock[2]) / 1000)

-- The part before "who". `expiry` is the four bytes of the record.
local function lease_head(deadline, turn, state, flags, expiry)
  return struct.pack('>ddBB', deadline, turn, state, flags) .. expiry
end

-- Unpacks a lease. The parts that are needed most come first: state, flags and expiry (four bytes) of the record, tail,
-- owner, deadline, openid, request id, fingerprint, turn.
local function unpack_lease(held)
  local deadline, turn, state, flags, expiry, owner, fingerprint, openid, request, tail =
    struct.unpack('>ddBBc4c16c16Bc0Bc0', held)
  return state, flags, expiry, sub(held, tail), owner, deadline, openid, request, fingerprint, turn
end

-- A lease as it is returned: uses left in the user's field, the current time (4 bytes each), state, flags, expiry,
-- tail.
local function lease_packed(state, flags, expiry, tail, left)
  return struct.pack('>I4I4BB', left, now, state, flags) .. expiry .. tail
end

local function lease_reply(...)
  return { 'leased', lease_packed(...) }
end
