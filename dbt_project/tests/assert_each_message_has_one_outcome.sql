-- Each message that dbt has taken is in exactly one of user_logins and rejected_messages, and in the right one.
{{ config(tags=['full_scan']) }}

select count(*) as without_one_outcome
from {{ ref('int_messages__masked') }} as taken
full join {{ ref('user_logins') }} as accepted on taken.message_id = accepted.message_id
full join {{ ref('rejected_messages') }} as rejected
    on coalesce(taken.message_id, accepted.message_id) = rejected.message_id
where
    taken.message_id is null
    or taken.is_accepted is distinct from (accepted.message_id is not null)
    or taken.is_accepted is not distinct from (rejected.message_id is not null)
having count(*) > 0
