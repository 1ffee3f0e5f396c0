-- The touch: when the user was last sent a message that was delivered or may have been. Put after records.lua, and after
-- stock.lua where a script touches.
--
-- It is a record, at most one a user, that is no credential: kind 3, no uses, and for an id a zero byte, which no
-- credential has. So nobody leases or counts it, and it goes by itself when it expires.

local keep_touch, touch_mark = 7 * 24 * 3600, '\192\0\0'

-- When the user was touched, in seconds since 1970, and where the touch starts; nothing if the user was not.
local function touched_at(field)
  -- Most users without a touch are told by this; the bytes may also lie within an id.
  if not string.find(field, touch_mark, 1, true) then return nil end
  local stop = #field
  while stop > 0 do
    local start = start_of(field, stop)
    -- The sending mark, of the same kind, has a longer id.
    if byte(field, start + 4) >= 192 and byte(field, stop) == 0 then return expiry_at(field, start) - keep_touch, start end
    stop = start - 1
  end
  return nil
end

-- The field with a touch of this time, unless it has one as new.
local function touch(field, at)
  local before, start = touched_at(field)
  if at + keep_touch <= now or before and before >= at then return field end
  if start then field = sub(field, 1, start - 1) .. sub(field, start + 7) end
  return insert(field, struct.pack('>I4', at + keep_touch) .. touch_mark)
end
