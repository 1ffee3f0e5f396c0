-- How a use is leased. Put after leases.lua, before the scripts that lease.

-- Takes one use of the soonest-to-expire record of an allowed kind that lives longer than the margin. Returns the new
-- field, and the flags (no uses), expiry (four bytes) and tail of the record; the field alone when there is none.
local function take(field, kinds, margin)
  local stop = #field
  while stop > 0 do
    local start = start_of(field, stop)
    local flags = byte(field, start + 4)
    local uses = flags % 32
    if uses > 0 and bit.band(kinds, bit.lshift(1, math.floor(flags / 64))) ~= 0 and expiry_at(field, start) > now + margin then
      return sub(field, 1, start + 3) .. string.char(flags - 1) .. sub(field, start + 5),
        flags - uses, sub(field, start, start + 3), sub(field, start + 5, stop)
    end
    stop = start - 1
  end
  return field
end
