-- Prepares a hash for HSCAN, for scripts that begin to read all users of a bucket.

-- Redis stores a small hash as a list, which it searches at every access and returns as a whole in a scan. One long
-- value converts the hash to a table for as long as it exists.
local function make_table(hash)
  redis.call('HSET', hash, ' ', string.rep(' ', 513))
  redis.call('HDEL', hash, ' ')
end
