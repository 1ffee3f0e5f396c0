-- Adding uses to grants, and letting them rest.
--- @include head/records head/stock head/rest

-- Returns the field with `count` more uses of the template, and the number of uses that did not fit. Existing records
-- of the template are filled first, including those with leased uses. Then new slots are started. They rest like the
-- existing ones. A count of 0 adds a long-term subscription, and returns nil in place of the field if there is one
-- already. The third value is whether the grants rest or have rested.
local function add_uses(field, template, count)
  local begun, stop, long_term = {}, #field, count == 0
  local expiry, flagged = '\255\255\255\255', 128
  while stop > 0 do
    local start = start_of(field, stop)
    if is_grant_of(field, start, stop, template) then
      local slot, flags = byte(field, stop - 1), byte(field, start + 4)
      begun[slot] = true
      if flags >= 160 then expiry, flagged = sub(field, start, start + 3), 160 end
      local more = slot == 127 and 0 or math.min(count, 31 - flags % 32)
      if more > 0 then
        field = sub(field, 1, start + 3) .. string.char(flags + more) .. sub(field, start + 5)
        count = count - more
      end
    end
    stop = start - 1
  end
  if long_term then
    if begun[127] then return nil, 0, flagged == 160 end
    field = insert(field, expiry .. string.char(flagged + 1) .. template .. string.char(127, #template))
    return field, 0, flagged == 160
  end
  for slot = 128, 247 do
    if count == 0 then break end
    if not begun[slot] then
      local more = math.min(count, 31)
      field = insert(field, expiry .. string.char(flagged + more) .. template .. string.char(slot, #template))
      count = count - more
    end
  end
  return field, count, flagged == 160
end

-- The field with the grants of a template at rest until `ends`, or without a rest if it is nil.
local function set_rest(field, template, ends)
  local expiry = ends and struct.pack('>I4', math.min(ends + rest_span, 2 ^ 32 - 2)) or '\255\255\255\255'
  local found, stop = {}, #field
  while stop > 0 do
    local start = start_of(field, stop)
    if is_grant_of(field, start, stop, template) then
      local flags = byte(field, start + 4) % 32 + (ends and 160 or 128)
      found[#found + 1] = expiry .. string.char(flags) .. sub(field, start + 5, stop)
      field = sub(field, 1, start - 1) .. sub(field, stop + 1)
    end
    stop = start - 1
  end
  for _, record in ipairs(found) do field = insert(field, record) end
  return field
end
