-- How a use is leased. Put after leases.lua, before the scripts that lease.

-- Leases one use of the soonest-to-expire record of an allowed kind that lives longer than the margin. Returns the new
-- field, and the lease; the field alone when there is no such record.
local function take(field, kinds, margin, lease_ms, openid, owner, request, fingerprint)
  local stop = #field
  while stop > 0 do
    local start = start_of(field, stop)
    local flags = byte(field, start + 4)
    if flags % 32 > 0 and bit.band(kinds, bit.lshift(1, math.floor(flags / 64))) ~= 0 then
      local expiry = expiry_at(field, start)
      if expiry > now + margin then
        local deadline = now_ms + lease_ms
        return sub(field, 1, start + 3) .. string.char(flags - 1) .. sub(field, start + 5),
          { deadline = deadline, turn = deadline, state = 0, flags = flags - flags % 32, expiry = expiry, owner = owner,
            fingerprint = fingerprint, openid = openid, request = request, tail = sub(field, start + 5, stop) }
      end
    end
    stop = start - 1
  end
  return field
end
