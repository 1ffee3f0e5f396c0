-- The permits of a bucket: how many messages of a broadcast may be sent there. Put before the scripts that count them.
--
-- A hash of totals since the beginning, so that what is reported twice or late counts once:
--   received  permits that came here: as many as permit.lua granted, as far as it is known here
--   returned  of these, given back unused: see account.lua
--   taken     of these, taken by messages, less those whose message was put back
-- So a permit is in the bucket or with a message, and never only in the memory of a replica, which may die.

-- The totals, with those granted by now.
local function read_permits(key, granted)
  local received, returned, taken = unpack(redis.call('HMGET', key, 'received', 'returned', 'taken'))
  return math.max(tonumber(received or 0), granted), tonumber(returned or 0), tonumber(taken or 0)
end

-- As replies have it: received, returned, ended (taken by messages that are not in flight any more), left.
local function permits_reply(received, returned, taken, flight)
  return { received, returned, math.max(0, taken - redis.call('SCARD', flight)), received - returned - taken }
end
