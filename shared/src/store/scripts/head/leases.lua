-- Leases: what is in flight. Put after records.lua, before every script that touches one.
--
-- A lease holds one use of one credential for one message. The record it came from stays in the user's field with that
-- use taken off, so a form id in flight is still known as a duplicate.
--
-- A message with a request id has its lease under that id, so whoever repeats the request finds it; any other has it
-- under the lease id. The owner, a lease id too, fences: who is not the owner any more changes nothing. A lease has two
-- clocks: its deadline, until which its owner has it alone, and its turn, when the reaper next looks at it.
--
-- Packed:  1-8 deadline and 9-16 turn in ms  17 state  18 flags of the record  19-22 expiry of the record
--          23 on: who (made by leases.rs): 23-38 owner, 39-54 fingerprint of the message (zeros without a request id),
--                 then openid and request id, a length byte and its bytes each
--          and last the tail of the record
-- State adds up: 1 the reaper pinned it to its request; 2 it was taken over, so bytes may have left before;
-- 4 its user was erased, and it only tells that the message was under way (counted in the ledger as "lost").

local now_ms = now * 1000 + math.floor(tonumber(clock[2]) / 1000)

-- The part before "who"; expiry as the four bytes it is in a record.
local function lease_head(deadline, turn, state, flags, expiry)
  return struct.pack('>ddBB', deadline, turn, state, flags) .. expiry
end

-- The tail of the record that a packed lease came from.
local function tail_of(held)
  local openid = byte(held, 55)
  return sub(held, 57 + openid + byte(held, 56 + openid))
end

-- A lease as it is handed out: uses left in the user's field, the time now (4 bytes each), state, flags, expiry, tail.
local function lease_packed(state, flags, expiry, tail, left)
  return struct.pack('>I4I4BB', left, now, state, flags) .. expiry .. tail
end

local function lease_reply(...)
  return { 'leased', lease_packed(...) }
end
