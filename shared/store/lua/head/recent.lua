-- Whether a user was messaged recently.
--- @include head/records head/touched head/leases

-- Returns a function of openid and field: whether a message was sent to the user within `interval` seconds, or may have
-- been. A lease counts as a message until it ends, since its message may have been delivered. The time of that message
-- is now while an owner has the lease, and otherwise at the latest the owner's deadline. All leases are read: few
-- messages of a bucket are in flight or have an unknown outcome.
local function recently_messaged(leases, interval)
  if interval == 0 then return function() return false end end
  local sent_by = {}
  for _, held in ipairs(redis.call('HVALS', leases)) do
    -- Not by unpack_lease: only these two parts are needed, of every lease of the bucket.
    local deadline, openid = struct.unpack('>d', held), struct.unpack('Bc0', held, 55)
    if deadline > (sent_by[openid] or 0) then sent_by[openid] = deadline end
  end
  return function(openid, field)
    local touched = touched_at(field)
    return touched and touched > now - interval or (sent_by[openid] or 0) > now_ms - interval * 1000
  end
end
