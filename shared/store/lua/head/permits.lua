-- The permits of a bucket: how many messages of a broadcast may be sent there.
--
-- A hash of totals since the beginning, so that a number that is reported twice or late counts once:
--   received  permits that arrived here: as many as permit.lua granted, as far as it is known here
--   returned  of these, returned unused: see account.lua
--   taken     of these, taken by messages, minus those whose message was put back
-- A permit is therefore either in the bucket or with a message, and never only in the memory of a replica, which may
-- die.

-- The totals. `granted` is the number of permits granted so far.
local function read_permits(key, granted)
  local received, returned, taken = unpack(redis.call('HMGET', key, 'received', 'returned', 'taken'))
  return math.max(tonumber(received or 0), granted), tonumber(returned or 0), tonumber(taken or 0)
end

-- The totals for replies: received, returned, ended (taken by messages that are no longer in flight), left.
local function permits_reply(received, returned, taken, flight)
  return { received, returned, math.max(0, taken - redis.call('SCARD', flight)), received - returned - taken }
end
