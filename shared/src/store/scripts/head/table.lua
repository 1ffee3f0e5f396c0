-- Put before the scripts that begin to look at everyone of a bucket.

-- A small hash is a list to Redis, which it walks at every look, and hands out as a whole. One long value makes it a table
-- for as long as it lives.
local function make_table(hash)
  redis.call('HSET', hash, ' ', string.rep(' ', 513))
  redis.call('HDEL', hash, ' ')
end
