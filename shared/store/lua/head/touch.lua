-- Setting the last-messaged record, see touched.lua.
--- @include head/records head/touched head/stock

-- The field with a last-messaged record of this time, unless it has one that is as new.
local function touch(field, at)
  local before, start = touched_at(field)
  if at + keep_touch <= now or before and before >= at then return field end
  if start then field = sub(field, 1, start - 1) .. sub(field, start + 7) end
  return insert(field, struct.pack('>I4', at + keep_touch) .. touch_mark)
end
