-- The format of a user's field, and functions that read it. Its twin in Rust is record.rs, and a property test checks
-- that both agree. A head is short, because every call of a script creates each of its functions again.
--
-- A field is the concatenation of the user's records, latest expiry first. The newest record is therefore at the front
-- and the one to spend next at the back, and neither needs a search. A record is read backward from its last byte:
--
--   expiry  4 bytes  seconds since 1970, big-endian
--   flags   1 byte   kind * 64 + suspect * 32 + uses left (0 to 31; 0 while the last use is leased). Kind 3 is not a
--                    credential but the last-messaged record or the send lock, see touched.lua and mark.lua. Of a
--                    grant, the suspect flag means that it rests or has rested, see rest.lua
--   id      1 to 128 bytes
--   length  1 byte   bytes of the id - 1, plus 128 if the id is lowercase hex stored as bytes
--
-- The "tail" identifies a record: its id and length bytes.
--
-- A grant (kind 2) never expires, so it has the highest possible expiry and is at the front. (If it rests, it has another
-- expiry, decades away.) Its id is the template and a slot byte: 128 for the first 31 uses of the template, 129 for the
-- next, up to 247; 127 for a long-term subscription, whose one use returns when it is spent. No text id of another kind
-- has such a last byte, and no id that is stored as bytes has such a length byte. The tail of a grant therefore belongs
-- to no other record.

local byte, sub = string.byte, string.sub

local clock = redis.call('TIME')
local now = tonumber(clock[1])

-- The first byte of the record whose last byte is at `stop`.
local function start_of(field, stop)
  return stop - byte(field, stop) % 128 - 6
end

local function expiry_at(field, start)
  local a, b, c, d = byte(field, start, start + 3)
  return ((a * 256 + b) * 256 + c) * 256 + d
end

-- Whether the record is a grant of the template. The empty template matches none, because an id of one byte is never a
-- grant's.
local function is_grant_of(field, start, stop, template)
  return byte(field, stop) == #template and math.floor(byte(field, start + 4) / 64) == 2
    and sub(field, start + 5, stop - 2) == template
end

-- The field without its expired records, and the number of uses removed with them.
local function drop_expired(field)
  local stop, uses = #field, 0
  while stop > 0 do
    local start = start_of(field, stop)
    if expiry_at(field, start) > now then break end
    uses = uses + byte(field, start + 4) % 32
    stop = start - 1
  end
  if stop == #field then return field, 0 end
  return sub(field, 1, stop), uses
end

local function save(users, openid, field)
  if field == '' then redis.call('HDEL', users, openid) else redis.call('HSET', users, openid, field) end
end

local function tally(ledger, name, uses)
  if uses > 0 then redis.call('HINCRBY', ledger, name, uses) end
end
