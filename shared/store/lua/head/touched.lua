-- The last-messaged record (the touch): when the user was last sent a message that was delivered or may have been.
--
-- It is a record, at most one per user, that is not a credential: kind 3, no uses, and a zero byte as its id, which no
-- credential has. It is therefore never leased or counted, and it disappears by itself when it expires.
--- @include head/records

local keep_touch, touch_mark = 7 * 24 * 3600, '\192\0\0'

-- The time of the last message in seconds since 1970, and where its record starts; nil if there is none.
local function touched_at(field)
  -- A fast check that excludes most users without the record. The bytes may also occur within an id.
  if not string.find(field, touch_mark, 1, true) then return nil end
  local stop = #field
  while stop > 0 do
    local start = start_of(field, stop)
    -- The send lock, of the same kind, has a longer id.
    if byte(field, start + 4) >= 192 and byte(field, stop) == 0 then return expiry_at(field, start) - keep_touch, start end
    stop = start - 1
  end
  return nil
end
