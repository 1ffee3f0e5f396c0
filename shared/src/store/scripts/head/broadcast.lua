-- Messages of broadcasts. Put after leases.lua, before the scripts that send or settle them.
--
-- A message of a broadcast has its lease under the broadcast and the user, so whoever goes on with the bucket finds it.
-- Its request begins with a space, which no caller's request id can have. A user is in exactly one place: in `todo`, in
-- `flight`, or dealt with, and then counted once in the tally under how it ended. An ending is "delivered", or a reason
-- and WeChat's errcode ("CREDENTIALS_DEAD 41028"; the errcode may be missing).

local function message_name(id, openid)
  return ' ' .. id .. ':' .. openid
end

local no_fingerprint = string.rep('\0', 16)

-- "who" as leases.lua describes it.
local function message_who(owner, id, openid)
  return owner .. no_fingerprint .. string.char(#openid) .. openid .. string.char(#id + 1) .. ' ' .. id
end

-- How a delivered message ends that failed later: `why` begins with WeChat's errcode.
local function failed_later(why)
  return 'FAILED_LATER ' .. string.match(why, '^%-?%d+')
end

-- Notes how messages ended; `endings` is a list of openid, ending, openid, ending. Returns how many ended how: a list of
-- ending, number, ending, number.
local function count_endings(tally, undelivered, keep, endings)
  local counts, members = {}, {}
  for i = 1, #endings, 2 do
    local ending = endings[i + 1]
    counts[ending] = (counts[ending] or 0) + 1
    if ending ~= 'delivered' then
      members[#members + 1] = 0
      members[#members + 1] = endings[i] .. ' ' .. ending
    end
  end
  local noted = {}
  for ending, count in pairs(counts) do
    redis.call('HINCRBY', tally, ending, count)
    noted[#noted + 1] = ending
    noted[#noted + 1] = count
  end
  -- One that comes after the part has expired would make a tally that stays.
  if #endings > 0 and redis.call('TTL', tally) < 0 then redis.call('EXPIRE', tally, keep) end
  if #members > 0 then
    redis.call('ZADD', undelivered, unpack(members))
    redis.call('EXPIRE', undelivered, keep)
  end
  return noted
end
