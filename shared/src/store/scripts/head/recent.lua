-- Who was messaged recently. Put after touch.lua and leases.lua, before the scripts that skip such users.

-- Returns a function of a user and the user's field: whether a message was sent within `interval` seconds, or may have been.
-- A lease counts as a message until it ends, since its message may have been delivered: now while an owner has the lease,
-- and otherwise at the owner's deadline at the latest. Few messages of a bucket are in flight or in doubt, so all leases are
-- looked at.
local function recently_messaged(leases, interval)
  if interval == 0 then return function() return false end end
  local sent_by = {}
  for _, held in ipairs(redis.call('HVALS', leases)) do
    local deadline, openid = struct.unpack('>d', held), struct.unpack('Bc0', held, 55)
    if deadline > (sent_by[openid] or 0) then sent_by[openid] = deadline end
  end
  return function(openid, field)
    local touched = touched_at(field)
    return touched and touched > now - interval or (sent_by[openid] or 0) > now_ms - interval * 1000
  end
end
