-- Adding uses to grants.
--- @include head/records

-- Returns the field with `count` more uses of the template, and the number of uses that did not fit. Existing records
-- of the template are filled first, including those with leased uses. Then new slots are started. A count of 0 adds a
-- long-term subscription, and returns nil if there is one already.
local function add_uses(field, template, count)
  local begun, stop, long_term = {}, #field, count == 0
  while stop > 0 do
    local start = start_of(field, stop)
    if is_grant_of(field, start, stop, template) then
      local slot, flags = byte(field, stop - 1), byte(field, start + 4)
      begun[slot] = true
      local more = slot == 127 and 0 or math.min(count, 31 - flags % 32)
      if more > 0 then
        field = sub(field, 1, start + 3) .. string.char(flags + more) .. sub(field, start + 5)
        count = count - more
      end
    end
    stop = start - 1
  end
  if long_term then
    if begun[127] then return nil end
    return '\255\255\255\255\129' .. template .. string.char(127, #template) .. field, 0
  end
  for slot = 128, 247 do
    if count == 0 then break end
    if not begun[slot] then
      local more = math.min(count, 31)
      field = '\255\255\255\255' .. string.char(128 + more) .. template .. string.char(slot, #template) .. field
      count = count - more
    end
  end
  return field, count
end
