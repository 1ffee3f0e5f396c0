-- Who can be reached. Put after records.lua, before the scripts that look at many users and lease nothing.

-- Whether there is anything that `take` (see take.lua) would take; it does without the strings that `take` makes.
local function can_take(field, kinds, margin)
  local stop = #field
  while stop > 0 do
    local start = start_of(field, stop)
    local flags = byte(field, start + 4)
    if flags % 32 > 0 and bit.band(kinds, bit.lshift(1, math.floor(flags / 64))) ~= 0 then
      if expiry_at(field, start) > now + margin then return true end
    end
    stop = start - 1
  end
  return false
end
